//! The loop: a program that ends at once, executed again and again.

use std::{
    env,
    ffi::CString,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::PathBuf,
    ptr,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

/// Code of the tiny program: `exit(0)`.
const CODE: [u8; 9] = [
    0xb8, 0x3c, 0, 0, 0, // mov eax, 60
    0x31, 0xff, // xor edi, edi
    0x0f, 0x05, // syscall
];
/// Where it is loaded.
const BASE: u64 = 0x40_0000;

/// A static ELF file of one segment: header, program header, code (elf(5)).
fn tiny() -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + CODE.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    let long = |file: &mut Vec<u8>, value: u64| file.extend(value.to_le_bytes());
    half(&mut file, 2); // an executable
    half(&mut file, 62); // x86-64
    word(&mut file, 1);
    long(&mut file, BASE + HEADERS); // its entry
    long(&mut file, 64); // where the program header is
    long(&mut file, 0); // no sections
    word(&mut file, 0);
    for value in [64, 56, 1, 64, 0, 0] {
        half(&mut file, value);
    }
    word(&mut file, 1); // to be loaded
    word(&mut file, 5); // to read and execute
    for value in [0, BASE, BASE, size, size, 4096] {
        long(&mut file, value);
    }
    file.extend(CODE);
    file
}

/// Seconds for one program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Of the whole turn.
    pub(crate) mean: f64,
    /// Of the quickest [`STRETCH`]: other load on the machine makes stretches
    /// longer, never shorter, and what comes with every program is in each.
    pub(crate) quickest: f64,
}

/// Programs executed in one of the stretches of a turn.
const STRETCH: usize = 100;

/// The tiny program's file.
pub(crate) struct Executions {
    path: PathBuf,
    name: CString,
}

impl Executions {
    pub(crate) fn prepare() -> Result<Self> {
        let path = env::temp_dir().join(format!("lingerscope-tiny-{}", std::process::id()));
        fs::write(&path, tiny()).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let name = CString::new(path.as_os_str().as_bytes())?;
        Ok(Self { path, name })
    }

    /// Executes it so often, one after the other.
    pub(crate) fn turn(&self, programs: usize) -> Result<Turn> {
        let began = Instant::now();
        let mut quickest = f64::MAX;
        for _ in 0..programs / STRETCH {
            let stretch = Instant::now();
            for _ in 0..STRETCH {
                self.execute()?;
            }
            quickest = quickest.min(stretch.elapsed().as_secs_f64() / STRETCH as f64);
        }
        Ok(Turn {
            mean: began.elapsed().as_secs_f64() / programs as f64,
            quickest,
        })
    }

    fn execute(&self) -> Result<()> {
        let mut arguments = [self.name.as_ptr().cast_mut(), ptr::null_mut()];
        let mut environment = [ptr::null_mut()];
        let (mut child, mut status) = (0, 0);
        // SAFETY: name, arguments and environment end with a null and outlive
        // the call; there is room for the answers.
        unsafe {
            let error = libc::posix_spawn(
                &raw mut child,
                self.name.as_ptr(),
                ptr::null(),
                ptr::null(),
                arguments.as_mut_ptr(),
                environment.as_mut_ptr(),
            );
            ensure!(error == 0, "cannot execute the tiny program: {error}");
            ensure!(
                libc::waitpid(child, &raw mut status, 0) == child && status == 0,
                "the tiny program ended with {status}"
            );
        }
        Ok(())
    }
}

impl Drop for Executions {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}
