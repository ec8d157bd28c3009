//! `jumpctl`.
