"""Policy: documents as users write them, down to the policy maps that packets are judged by."""
