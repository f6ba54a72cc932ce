"""Containers of Docker and Podman, each an endpoint with the labels of the container."""
