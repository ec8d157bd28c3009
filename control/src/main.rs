//! jump-control: the stateless gRPC service that arbitrates session ownership.

fn main() {}
