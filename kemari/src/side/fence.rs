//! The fence command: cuts the other host off from the shared disks, for certain.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often a running fence command is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Runs the command; fails unless it ends with status 0 in time. One that hangs is killed, and counts as failed.
pub fn fence(command: &[String], timeout: Duration) -> Result<(), String> {
    let [program, arguments @ ..] = command else {
        return Err(
            "no fence command is configured, but disks are shared; set `fence` in this host's section".into(),
        );
    };
    let shown = command.join(" ");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| format!("the fence command `{shown}` cannot be started: {error}"))?;
    let deadline = Instant::now() + timeout;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("the fence command `{shown}` failed: {status}")),
            Ok(None) if Instant::now() < deadline => thread::sleep(LOOK_INTERVAL),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!(
                    "the fence command `{shown}` did not end within {timeout:?}"
                ));
            }
            Err(error) => return Err(format!("the fence command `{shown}` cannot be watched: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &[&str]) -> Result<(), String> {
        let command: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        fence(&command, Duration::from_millis(300))
    }

    #[test]
    fn only_a_fence_that_says_so_has_succeeded() {
        assert_eq!(run(&["true"]), Ok(()));
        assert!(run(&["false"]).unwrap_err().contains("failed"));
        assert!(run(&["sleep", "30"]).unwrap_err().contains("did not end"));
        assert!(
            run(&["/nonexistent/fence"])
                .unwrap_err()
                .contains("cannot be started")
        );
        assert!(run(&[]).unwrap_err().contains("no fence command"));
    }
}
