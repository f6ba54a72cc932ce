"""Names of the sources of workloads, in the order of their precedence."""

KUBERNETES, DOCKER, PODMAN, PROCESS = "kubernetes", "docker", "podman", "process"
SOURCES = (KUBERNETES, DOCKER, PODMAN, PROCESS)
