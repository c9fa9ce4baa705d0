//! Chat templates: a template, and after a zero the texts of a conversation, with zeros between them.
//!
//! A template can exhaust memory and the stack by nesting lists, which docs/security.md says. So what makes lists, which
//! is `[`, is left out here.

use trion_engine::chat_template::{ChatTemplate, Date, Message, RenderOptions};

/// Renders a conversation.
///
/// # Panics
/// If the same conversation gives two texts.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split('\0');
    let source = parts.next().unwrap_or_default();
    let template = match ChatTemplate::new(source) {
        Ok(template) => template,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let roles = ["system", "user", "assistant", "tool"];
    let messages: Vec<Message> = parts.zip(roles).map(|(content, role)| Message::new(role, content)).collect();
    let options = RenderOptions {
        add_generation_prompt: true,
        bos_token: Some("<s>"),
        eos_token: None,
        date: Date::new(2024, 2, 29),
    };
    let words = |rendered: trion_engine::Result<String>| rendered.map_err(|e| e.to_string());
    let rendered = words(template.render(&messages, &options));
    assert_eq!(words(template.render(&messages, &options)), rendered);
}
