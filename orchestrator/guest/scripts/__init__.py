"""Programs that run in the guest. They are sent with each request, with those they import; see `wire.python`."""
