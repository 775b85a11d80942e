"""What clients ask for: who may, what they may say, and how each kind of request is answered."""
