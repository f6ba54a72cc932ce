"""The command line: nouns and verbs as Cilium's and Hubble's users know them."""
