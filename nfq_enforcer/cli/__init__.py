"""Command line: nouns and verbs as in Cilium's and Hubble's."""
