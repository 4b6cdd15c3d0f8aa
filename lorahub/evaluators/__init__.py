"""What suites run in a process of their own that loads an adapter on its base model."""
