//! In which form values are asked for: as text, except while the server cannot send one so.
//!
//! A walsender cannot send a text of a gigabyte, which a `bytea` of half of that has, and fails at the same change for
//! ever. As binary it may be able to; in that form it cannot send containers of a few types that have none. So what fails
//! in one form is tried in the other by the next session, and a change that fails in both is a person's to decide on.
//! Nothing of this is saved: after a crash the same errors lead the same way.

use crate::change::Lsn;
use crate::postgres::server_error::ServerError;

/// How the server is to send values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// As text.
    #[default]
    Text,
    /// As binary.
    Binary,
}

/// The form that the next session asks for, and why.
#[derive(Debug, Default)]
pub struct Forms {
    form: Form,
    /// The last change that could not be sent.
    refused: Option<Refused>,
}

#[derive(Debug)]
struct Refused {
    form: Form,
    /// Its place in the WAL; the end of all places where that is unknown.
    change: Lsn,
    /// The last transaction that the log had then.
    last_commit: Option<Lsn>,
}

/// What follows from a change that could not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The next session asks for this form.
    Try(Form),
    /// It cannot be sent in the other form either.
    Stuck,
}

impl Forms {
    /// The form to ask for.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Whether the server has sent all that it was asked for.
    pub fn is_at_ease(&self) -> bool {
        self.refused.is_none()
    }

    /// What follows from an error of the server that has ended a session, if it is about the form. `last_commit` is the
    /// last transaction that the log has: where it is not the one that it had when the other form failed, that has been
    /// got over.
    pub fn after(&mut self, error: &ServerError, last_commit: Option<Lsn>) -> Option<Next> {
        let other = match self.form {
            Form::Text if error.is_value_too_large() => Form::Binary,
            Form::Binary if error.is_value_too_large() || error.is_type_without_binary_form() => Form::Text,
            _ => return None,
        };
        let before = self.refused.replace(Refused {
            form: self.form,
            change: error.change().unwrap_or(Lsn(u64::MAX)),
            last_commit,
        });
        if before.is_some_and(|before| before.form == other && before.last_commit == last_commit) {
            *self = Forms::default();
            return Some(Next::Stuck);
        }
        self.form = other;
        Some(Next::Try(other))
    }

    /// Notes that the server will never again read what lies before `restart`. True when it can send text again from
    /// now on.
    pub fn reads_from(&mut self, restart: Lsn) -> bool {
        let is_past = self.form == Form::Binary
            && self.refused.as_ref().is_some_and(|refused| refused.change < restart);
        if is_past {
            *self = Forms::default();
        }
        is_past
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::server_error::sqlstate;

    fn error(code: &str, message: &str, context: &str) -> ServerError {
        ServerError {
            code: code.to_owned(),
            message: message.to_owned(),
            context: Some(context.to_owned()),
            ..ServerError::default()
        }
    }

    fn too_large() -> ServerError {
        let context = "Slot \u{bb}s\u{ab}, Ausgabe-Plugin \u{bb}pgoutput\u{ab}, im Callback change, zugeh\u{f6}rige LSN 0/1F";
        error(sqlstate::INTERNAL_ERROR, "invalid memory alloc request size 1174405123", context)
    }

    fn no_binary() -> ServerError {
        error(sqlstate::UNDEFINED_FUNCTION, "no binary output function available for type aclitem", "")
    }

    #[test]
    fn a_change_too_large_for_text_goes_as_binary_until_it_is_never_read_again() {
        let mut forms = Forms::default();
        assert_eq!(forms.after(&too_large(), None), Some(Next::Try(Form::Binary)));
        assert!(!forms.reads_from(Lsn(0x1F)), "the change itself may be read again");
        assert_eq!(forms.form(), Form::Binary);
        assert!(forms.reads_from(Lsn(0x20)));
        assert_eq!(forms.form(), Form::Text);
        assert!(!forms.reads_from(Lsn(0x30)));
    }

    #[test]
    fn a_change_that_goes_in_neither_form_is_told_and_not_tried_for_ever() {
        let mut forms = Forms::default();
        assert_eq!(forms.after(&too_large(), Some(Lsn(1))), Some(Next::Try(Form::Binary)));
        assert_eq!(forms.after(&no_binary(), Some(Lsn(1))), Some(Next::Stuck));
        // After a person's intervention it begins anew.
        assert_eq!(forms.after(&too_large(), Some(Lsn(1))), Some(Next::Try(Form::Binary)));
        assert_eq!(forms.after(&too_large(), Some(Lsn(1))), Some(Next::Stuck));
    }

    #[test]
    fn changes_that_go_in_one_form_each_are_got_over_one_by_one() {
        let mut forms = Forms::default();
        for commit in 0..5 {
            assert_eq!(forms.after(&too_large(), Some(Lsn(2 * commit))), Some(Next::Try(Form::Binary)));
            assert_eq!(forms.after(&no_binary(), Some(Lsn(2 * commit + 1))), Some(Next::Try(Form::Text)));
        }
    }

    #[test]
    fn other_errors_are_none_of_its_business() {
        let mut forms = Forms::default();
        assert_eq!(forms.after(&error(sqlstate::ADMIN_SHUTDOWN, "shutting down", ""), None), None);
        assert_eq!(forms.after(&no_binary(), None), None, "as text everything has a form");
    }
}
