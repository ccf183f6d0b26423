"""The programs that go into a bundle. They stand alone: the device has no edgekit, only the runtime and numpy."""
