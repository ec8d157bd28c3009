//! The client session machine.
