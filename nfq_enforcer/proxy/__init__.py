"""The HTTP proxy: Envoy, its configuration, its process and its access log."""
