//! Tells the program of which commit it is.
//!
//! A release build is made anew when the commit changes. Others say that they are none:
//! they would be built again and again.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=KEMARI_COMMIT");
    let given = std::env::var("KEMARI_COMMIT").ok();
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = match (given, is_release) {
        (Some(given), _) => given,
        (None, true) => commit().unwrap_or_else(|| "commit unknown".to_owned()),
        (None, false) => "debug build".to_owned(),
    };
    println!("cargo:rustc-env=KEMARI_COMMIT={commit}");
}

/// What is checked out, with a `+` if files differ from it. `None`: this is no clone, or there is no git.
fn commit() -> Option<String> {
    // A line is added to it with each commit and with each checkout.
    println!(
        "cargo:rerun-if-changed={}",
        git(&["rev-parse", "--git-path", "logs/HEAD"])?
    );
    for sources in ["src", "../kemari-sync/src", "../kemari-vmm/src"] {
        println!("cargo:rerun-if-changed={sources}");
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let is_changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(format!("commit {commit}{}", if is_changed { "+" } else { "" }))
}

fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
