//! The demo does what it says with whatever the machine has for a pod, its figures are those of a store that deduplicates, and it
//! leaves nothing behind, neither when it is done nor when it is interrupted.

mod support;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;
use support::skipped;

const PODSNAP: &str = env!("CARGO_BIN_EXE_podsnap");
const INTERRUPTED: i32 = 130;

/// A directory for everything temporary, which must be empty in the end.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn tmp(&self) -> PathBuf {
        let tmp = self.0.path().join("tmp");
        fs::create_dir_all(&tmp).unwrap();
        tmp
    }

    fn demo(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PODSNAP);
        command
            .arg("demo")
            .args(args)
            .env("TMPDIR", self.tmp())
            .stdin(Stdio::null());
        command
    }

    /// Panics if there is still a file, a process or a mount.
    fn assert_nothing_left(&self) {
        let files: Vec<_> = fs::read_dir(self.tmp())
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        assert!(
            files.is_empty(),
            "left in the temporary directory: {files:?}"
        );
        let name = self.tmp().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&name), "left mounted: {mounts}");
        // What was killed by the death of what was killed may take its time.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = processes(&name);
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left running: {left:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Command lines of processes that have to do with this path.
fn processes(path: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(path) {
            found.push(line);
        }
    }
    found
}

fn document(output: &Output) -> Value {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"))
}

/// What must be true of every pod.
fn check_figures(figures: &Value) {
    let number = |path: &str| {
        figures
            .pointer(path)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("{path} in {figures}"))
    };
    assert_eq!(figures["compare"]["identical"], true, "{figures}");
    assert_eq!(
        figures["compare"]["differences"].as_array().unwrap().len(),
        0
    );
    assert_eq!(figures["verify"]["sound"], true, "{figures}");
    assert_eq!(
        figures["second"]["inspect"]["borrowed"][0]["snapshot"],
        "first"
    );
    assert_eq!(figures["alive"]["goes_on"], true, "{figures}");
    let counted = |at: usize| number(&format!("/alive/counted/{at}"));
    assert!(number("/first/count") < number("/second/count"));
    assert!(
        number("/second/count") < counted(0) && counted(0) + 1 == counted(1),
        "{figures}"
    );
    let (first, second) = (
        number("/first/stored_bytes"),
        number("/second/stored_bytes"),
    );
    assert!(second * 10 < first, "stored {first}, then {second}");
    let share = figures["second_share"].as_f64().unwrap();
    assert!((share - second as f64 / first as f64).abs() < 1e-9);
    assert_eq!(number("/restore/raw_bytes"), number("/second/raw_bytes"));
    for moment in ["/first", "/second"] {
        let parts = ["zero", "deduplicated_own", "deduplicated_base", "new"];
        let sum: u64 = parts
            .iter()
            .map(|part| number(&format!("{moment}/{part}_bytes")))
            .sum();
        assert_eq!(sum, number(&format!("{moment}/raw_bytes")), "{figures}");
    }
}

/// What must be true where memory and files are saved together: the weights are stored once.
fn check_weights_are_stored_once(figures: &Value) {
    let weights = figures["weights_bytes"].as_u64().unwrap();
    let found_twice = figures["first"]["deduplicated_own_bytes"].as_u64().unwrap();
    assert!(
        found_twice * 100 > weights * 98,
        "{found_twice} of {weights} bytes were found twice"
    );
    assert!(figures["first"]["stored_bytes"].as_u64().unwrap() < weights);
    let longest = &figures["first"]["inspect"]["duplicates"][0];
    assert!(
        longest["bytes"].as_u64().unwrap() * 2 > weights,
        "{longest}"
    );
    assert_eq!(longest["of"]["section"], "memory");
    assert!(figures["compare"]["bytes"].as_u64().unwrap() > 2 * weights);
}

#[test]
fn a_plain_process_is_saved_twice_and_goes_on() {
    let place = Place::new();
    let figures = document(&place.demo(&["--without-runsc", "--json"]).output().unwrap());
    assert_eq!(figures["way"], "process", "{figures}");
    check_figures(&figures);
    check_weights_are_stored_once(&figures);
    place.assert_nothing_left();
}

#[test]
fn people_read_one_line_for_each_step_and_can_keep_the_store() {
    let place = Place::new();
    let store = place.0.path().join("below/store");
    let keep = ["--keep", store.to_str().unwrap()];
    // No runsc to be found anywhere: then the flag is not needed.
    let output = place
        .demo(&keep)
        .env("PATH", "/nowhere")
        .env("PODSNAP_CACHE", "/nowhere")
        .env("PODSNAP_STORE", place.0.path().join("not-this-one"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        text.starts_with("No gVisor sandbox here: runsc is not installed.\n"),
        "{text}"
    );
    let at = |word: &str| {
        let found = text.lines().position(|line| line.starts_with(word));
        found.unwrap_or_else(|| panic!("no line {word:?} in {text}"))
    };
    let lines = [
        "save     first",
        "inspect  first",
        "save     second",
        "verify   second",
        "restore  second",
        "compare  ",
        "alive    ",
    ]
    .map(at);
    assert!(lines.is_sorted(), "{text}");
    assert!(text.contains("identical to what was saved"), "{text}");
    place.assert_nothing_left();
    assert!(!place.0.path().join("not-this-one").exists());
    // Nothing but the store is there, and the commands that were shown work.
    assert_eq!(
        fs::read_dir(place.0.path().join("below")).unwrap().count(),
        1
    );
    let shown = format!("podsnap --store {} ", store.display());
    let commands: Vec<_> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix(&shown))
        .collect();
    assert!(
        commands.contains(&"ls") && commands.contains(&"verify second"),
        "{text}"
    );
    for command in commands {
        let output = Command::new(PODSNAP)
            .args(["--json", "--store", store.to_str().unwrap()])
            .args(command.split(' '))
            .current_dir(place.0.path())
            .output()
            .unwrap();
        let answer = document(&output);
        if command == "ls" {
            assert_eq!(answer[0]["snapshot"], "second");
            assert_eq!(answer[0]["borrows_from"][0], "first");
        }
    }
    let model = fs::metadata(place.0.path().join("NEW_DIR/tmpfs/model/model.safetensors")).unwrap();
    assert!(model.len() > 32 << 20);

    let again = place.demo(&keep).output().unwrap();
    assert_eq!(
        again.status.code(),
        Some(2),
        "a directory with something in it is refused"
    );
    place.assert_nothing_left();
}

/// Runs a demo up to the first line that begins with `word`, or to the pod's first sign of life, and interrupts it.
fn interrupt(place: &Place, args: &[&str], word: Option<&str>, signal: Signal) -> Option<i32> {
    let mut child = place
        .demo(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    match word {
        Some(word) => {
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(
                lines.any(|line| line.unwrap().starts_with(word)),
                "no line {word:?}"
            );
            // Keep reading, so that it does not end for want of a reader.
            thread::spawn(move || lines.count());
        }
        None => wait_for_a_pod(place, &mut child),
    }
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait().unwrap().code()
}

/// The scratch directory is among the temporary ones, or beside the store that is to be kept.
fn wait_for_a_pod(place: &Place, child: &mut Child) {
    let pod_in = |dir: &Path| {
        let mut entries = fs::read_dir(dir).unwrap().flatten();
        entries.any(|entry| entry.path().join("pod.log").exists())
    };
    while !pod_in(&place.tmp()) && !pod_in(place.0.path()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended early");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_interrupt_leaves_nothing() {
    for (word, signal) in [
        (None, Signal::INT),
        (Some("save     first"), Signal::INT),
        (Some("save     first"), Signal::TERM),
    ] {
        let place = Place::new();
        let store = place.0.path().join("store");
        let keep = ["--without-runsc", "--keep", store.to_str().unwrap()];
        for args in [&keep[..1], &keep[..]] {
            assert_eq!(
                interrupt(&place, args, word, signal),
                Some(INTERRUPTED),
                "{word:?}"
            );
            place.assert_nothing_left();
            let left: Vec<_> = fs::read_dir(place.0.path()).unwrap().collect();
            assert_eq!(left.len(), 1, "beside the temporary directory: {left:?}");
        }
    }
}

#[test]
fn a_killed_demo_leaves_no_process() {
    let place = Place::new();
    assert_eq!(
        interrupt(
            &place,
            &["--without-runsc"],
            Some("save     first"),
            Signal::KILL
        ),
        None
    );
    let name = place.tmp().display().to_string();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !processes(&name).is_empty() {
        assert!(
            Instant::now() < deadline,
            "left running: {:?}",
            processes(&name)
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// The kernel lets nobody but root read the memory of a program whose file its user cannot read.
#[test]
fn where_memory_cannot_be_read_the_files_are_saved() {
    if !geteuid().is_root() {
        return skipped("only root can run a program as a user who may not read it");
    }
    const NOBODY: u32 = 65534;
    let place = Place::new();
    let program = place.0.path().join("podsnap");
    fs::copy(PODSNAP, &program).unwrap();
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&program, 0o711);
    mode(place.0.path(), 0o755);
    mode(&place.tmp(), 0o777);
    let output = Command::new(&program)
        .args(["demo", "--json"])
        .env("TMPDIR", place.tmp())
        .env_remove("PODSNAP_STORE")
        .uid(NOBODY)
        .gid(NOBODY)
        .output();
    let output = match output {
        // A temporary directory that nobody can reach.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            return skipped("the temporary directory is closed to other users");
        }
        output => output.unwrap(),
    };
    let figures = document(&output);
    assert_eq!(figures["way"], "files", "{figures}");
    let limits = figures["limits"].to_string();
    assert!(
        limits.contains("runsc") && limits.contains("Permission denied"),
        "{limits}"
    );
    check_figures(&figures);
    place.assert_nothing_left();
}

/// The runsc that the demo finds, if it can use one.
fn runsc() -> Option<PathBuf> {
    let cache = cache()?;
    let mut dirs: Vec<_> = env::split_paths(&env::var_os("PATH")?).collect();
    dirs.push(cache.join("bin"));
    let found = dirs
        .into_iter()
        .map(|dir| dir.join("runsc"))
        .find(|path| path.is_file())?;
    geteuid().is_root().then_some(found)
}

fn cache() -> Option<PathBuf> {
    let dir = |name| {
        env::var_os(name)
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from)
    };
    dir("PODSNAP_CACHE")
        .or_else(|| Some(dir("XDG_CACHE_HOME")?.join("podsnap")))
        .or_else(|| Some(dir("HOME")?.join(".cache/podsnap")))
}

/// Whether a sandbox ran here before: then there is no excuse.
fn sandboxes_run_here() -> bool {
    cache().is_some_and(|cache| cache.join("images/small/pages.img").exists())
}

#[test]
fn a_sandbox_is_saved_twice_and_goes_on() {
    if runsc().is_none() {
        return skipped("the demo has no runsc that it could use as root");
    }
    let place = Place::new();
    let figures = document(&place.demo(&["--json"]).output().unwrap());
    place.assert_nothing_left();
    if figures["way"] != "gvisor" && !sandboxes_run_here() {
        return skipped(&format!("no sandbox runs here: {}", figures["limits"]));
    }
    assert_eq!(figures["way"], "gvisor", "{figures}");
    check_figures(&figures);
    check_weights_are_stored_once(&figures);
    assert_eq!(figures["compare"]["files"], 3);
    assert_eq!(figures["compare"]["bytes"], figures["second"]["raw_bytes"]);
}

#[test]
fn an_interrupt_leaves_no_sandbox() {
    if runsc().is_none() || !sandboxes_run_here() {
        return skipped("the demo has no runsc that it could use as root");
    }
    for word in [None, Some("save     first")] {
        let place = Place::new();
        assert_eq!(
            interrupt(&place, &[], word, Signal::INT),
            Some(INTERRUPTED),
            "{word:?}"
        );
        place.assert_nothing_left();
    }
}

#[test]
fn a_runsc_that_does_not_work_is_named_and_a_process_takes_its_place() {
    if !geteuid().is_root() {
        return skipped("runsc is used by root only");
    }
    let place = Place::new();
    let bin = place.0.path().join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(
        bin.join("runsc"),
        "#!/bin/sh\necho 'this kernel is too strange' >&2\nexit 128\n",
    )
    .unwrap();
    fs::set_permissions(bin.join("runsc"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut path = vec![bin];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap()));
    let output = place
        .demo(&["--json"])
        .env("PATH", env::join_paths(path).unwrap())
        .output()
        .unwrap();
    let figures = document(&output);
    assert_eq!(figures["way"], "process");
    assert_eq!(
        figures["limits"][0],
        "No gVisor sandbox here: the sandbox failed: this kernel is too strange."
    );
    check_figures(&figures);
    place.assert_nothing_left();
}
