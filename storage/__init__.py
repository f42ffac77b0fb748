"""What Swarm keeps: conversations, their messages, and the log of everything that happened in them."""
