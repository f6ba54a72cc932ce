"""The cluster as one node sees it: records, replica, endpoint index, names, compilation. Pure."""
