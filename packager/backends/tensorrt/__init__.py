"""What a TensorRT target needs of a build: the fitted graph, the engine recipe, engines made ahead."""
