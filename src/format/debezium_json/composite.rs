//! Composites as JSON objects.

use super::json;
use super::values::Rendering;
use crate::change::Attribute;
use crate::format::text::record;

/// An attribute, prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PreparedAttribute {
    /// `"name":`
    label: Vec<u8>,
    rendering: Rendering,
}

impl PreparedAttribute {
    pub(super) fn new(attribute: &Attribute) -> Self {
        let mut label = Vec::new();
        json::string(&mut label, attribute.name.as_bytes());
        label.push(b':');
        let data_type = &attribute.data_type;
        let rendering = Rendering::of(data_type.oid, data_type.type_modifier, &data_type.form);
        PreparedAttribute { label, rendering }
    }
}

/// Appends a composite as an object. `None` when the text is not a composite of these attributes: the type may have been
/// altered since they were asked for.
pub(super) fn write(out: &mut Vec<u8>, text: &[u8], attributes: &[PreparedAttribute]) -> Option<()> {
    out.push(b'{');
    if attributes.is_empty() {
        out.push(b'}');
        return (text == b"()").then_some(());
    }
    let mut expected = attributes.iter();
    record::walk(text, |value| {
        let attribute = expected.next()?;
        out.extend_from_slice(&attribute.label);
        match value {
            Some(text) => attribute.rendering.write_text(out, text)?,
            None => out.extend_from_slice(b"null"),
        }
        out.push(b',');
        Some(())
    })?;
    // The last comma.
    out.pop();
    out.push(b'}');
    expected.next().is_none().then_some(())
}
