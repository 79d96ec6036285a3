"""What a server keeps of requests where its recipe asks for it: encrypted, bounded, deletable."""
