//! The command `trion`.

fn main() {}
