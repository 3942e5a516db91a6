"""What the service is compared with: the least that the same work can cost, and what it costs when done plainly."""
