//! Text that must follow a JSON schema, a regular expression or a grammar.

#[path = "constraints/hostile.rs"]
mod hostile;
#[path = "constraints/places.rs"]
mod places;
#[path = "constraints/support.rs"]
mod support;
#[path = "constraints/texts.rs"]
mod texts;
