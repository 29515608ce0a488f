//! Panics of a library that reads hostile files, as errors, with their message and without a trace on stderr.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// `Some` while this thread runs inside [`catch`]; holds the message of a panic.
    static MESSAGE: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Runs `work`; a panic in it becomes its message and place.
///
/// `work` must leave nothing half-done that is used after a panic.
pub(in crate::inference) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            let kept = MESSAGE.try_with(|message| match &mut *message.borrow_mut() {
                Some(message) => {
                    *message = panic.to_string();
                    true
                }
                None => false,
            });
            if !kept.unwrap_or(false) {
                before(panic);
            }
        }));
    });
    let outer = MESSAGE.replace(Some(String::new()));
    let result = catch_unwind(AssertUnwindSafe(work));
    let message = MESSAGE.replace(outer);
    result.map_err(|_| message.unwrap_or_default().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_message_of_a_panic() {
        let message = catch(|| panic!("out of {}", "cheese")).expect_err("it panics");
        assert!(message.contains("out of cheese"), "{message}");
        assert_eq!(catch(|| 3), Ok(3));
    }
}
