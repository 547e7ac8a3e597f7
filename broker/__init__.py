"""The MQTT broker that takes mutual TLS only and decides every topic from the certificate's common name."""
