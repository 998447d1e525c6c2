"""The near end of a link: speaks to llama-server in the place of an rpc-server."""
