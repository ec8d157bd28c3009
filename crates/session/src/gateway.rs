//! The gateway session machine.
