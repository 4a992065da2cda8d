"""HTTP in front of the gRPC server, in a process of its own: `python -m luthier.web`.

Each request becomes a gRPC call over a Unix socket, so that all that holds for calls holds for requests. JSON is read
and written here: what is made to be slow takes the time of this process, and not that of predictions.

    __main__        the process
    orders          what the server tells it
    listener        connections: TLS, time-outs, limits
    application     which request goes where
    bodies          reading a request's body, within limits
    json_messages   messages as JSON, and the field that is wrong
    connect         the Connect protocol, for every method of every service
    open_inference  the REST form of the Open Inference Protocol
    tensors         its tensors as JSON and as bytes
    work            what takes time, and callers who go
    upstream        the calls, and the services' descriptors
    failures        errors as HTTP says them
"""
