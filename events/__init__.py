"""What happens in conversations: its vocabulary, its bytes, and how they reach every reader."""
