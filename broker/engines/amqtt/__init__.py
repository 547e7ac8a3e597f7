"""The embedded engine: amqtt for life cycle, configuration and plug-ins; listener, parser and routing of our own."""
