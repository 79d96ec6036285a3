"""What a TensorRT target needs of a build: fitted graph, recipe, engines made ahead."""
