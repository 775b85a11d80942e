"""The processes of a node: supervisor, network, storage writer. They move bytes and time; nun/core decides."""
