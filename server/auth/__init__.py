"""Who asks, and what they may do: credentials and how each kind of them is verified."""
