"""The programs that move MQTT packets, each behind `broker.engine.Engine`."""
