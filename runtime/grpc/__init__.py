"""HTTP/2 and the Open Inference Protocol's gRPC service, carried where the manifest asks for it."""
