"""Real MQTT clients that others wrote, over mutual TLS: paho-mqtt, MQTT.js, the mosquitto programs."""
