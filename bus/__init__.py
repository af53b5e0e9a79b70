"""The shared vocabulary: messages, wire, sockets, errors, ids, config and the clients."""
