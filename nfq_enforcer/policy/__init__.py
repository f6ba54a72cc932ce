"""Policy: from documents as users write them to the policy maps that the data path evaluates packets with."""
