"""From a variant to a loaded library: recipe -> key -> store, or build -> publish."""
