//! What the tool says about itself: help with examples, the version, completions.

mod support;

use std::process::{Command, Stdio};

use support::tool::*;

/// The commands that `podsnap --help` lists.
fn commands(tool: &Tool) -> Vec<String> {
    let help = tool.run(&["--help"]).ok();
    let listed = help.text().split("Commands:\n").nth(1).expect("a list");
    listed
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .collect()
}

#[test]
fn every_command_has_help_with_an_example_that_parses() {
    let tool = Tool::new();
    let commands = commands(&tool);
    for expected in [
        "save",
        "restore",
        "verify",
        "ls",
        "rm",
        "export",
        "import",
        "completions",
    ] {
        assert!(commands.iter().any(|c| c == expected), "{commands:?}");
    }
    for command in commands.iter().filter(|c| *c != "help") {
        let help = tool.run(&[command, "--help"]).ok();
        let text = help.text();
        let examples = text.split("Example").nth(1);
        let examples = examples.unwrap_or_else(|| panic!("{command} has no example:\n{text}"));
        let call = format!("podsnap {command}");
        let lines: Vec<_> = examples.lines().filter(|l| l.contains(&call)).collect();
        assert!(!lines.is_empty(), "{command}: {examples}");
        // Every option that an example shows exists.
        for line in lines {
            let own = line.split(&call).nth(1).unwrap();
            let own = own.split(['|', ';', '>', '\'', '&']).next().unwrap();
            for option in own.split_whitespace().filter(|w| w.starts_with("--")) {
                assert!(text.contains(option), "{command} has no {option}");
            }
        }
        for common in ["--store", "--json", "--quiet", "--key-file", "--no-sync"] {
            assert!(text.contains(common), "{command} --help says no {common}");
        }
    }
    let help = tool.run(&["--help"]).ok();
    for code in [
        "2 wrong usage",
        "3 not found",
        "4 refused",
        "5 damaged",
        "130 interrupted",
    ] {
        assert!(help.text().contains(code), "no {code:?}");
    }
}

#[test]
fn the_version_is_the_packages() {
    let tool = Tool::new();
    let version = tool.run(&["--version"]).ok();
    let expected = concat!("podsnap ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(version.text(), expected);
}

#[test]
fn completions_name_every_command_and_shells_take_them() {
    let tool = Tool::new();
    let commands = commands(&tool);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = tool.run(&["completions", shell]).ok();
        for command in &commands {
            assert!(
                script.text().contains(command.as_str()),
                "{shell}: no {command}"
            );
        }
        assert!(script.text().contains("key-file"), "{shell}");
        if !["bash", "zsh", "fish"].contains(&shell) {
            continue;
        }
        let path = tool.file(&format!("script.{shell}"), &script.stdout);
        let check = Command::new(shell)
            .arg("-n")
            .arg(path)
            .stdin(Stdio::null())
            .output();
        match check {
            Ok(output) => assert!(output.status.success(), "{shell}: {output:?}"),
            Err(_) => support::skipped(&format!(
                "{shell} is not installed: its completions were not parsed"
            )),
        }
    }
    // In bash they work: what begins with "ver" is verify.
    let script = tool.path("script.bash");
    let ask = format!(
        "source {}; COMP_WORDS=(podsnap ver); COMP_CWORD=1; _podsnap podsnap ver podsnap; echo \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    if let Ok(output) = Command::new("bash").args(["-c", &ask]).output() {
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.trim(), "verify", "{output:?}");
    }
}
