use iced_x86::Register::{None as Constant, R12, R15, RBX, RCX};
use object::elf;
use proptest::prelude::*;

use super::*;

/// The smallest image that parses: a header and nothing else. The sweep only
/// needs it for words that have no relocation.
fn empty() -> Vec<u8> {
    let mut header = vec![0; 64];
    header[..7].copy_from_slice(&[
        0x7f,
        b'E',
        b'L',
        b'F',
        elf::ELFCLASS64,
        elf::ELFDATA2LSB,
        elf::EV_CURRENT,
    ]);
    header[16] = 2;
    header[18] = 62;
    header[20] = 1;
    header[52] = 64;
    header
}

/// An executable whose block starts 0xb8 below the thread pointer.
fn executable() -> Addressing {
    Addressing {
        below: Some(0xb8),
        size: 0xb8,
        ..Addressing::default()
    }
}

fn sweep(addressing: &Addressing, code: &[u8]) -> Vec<Access> {
    let image = empty();
    let elf = Elf::parse(image.as_slice()).unwrap();
    accesses(&elf, addressing, code, 0x1000)
}

fn read(place: i64, size: usize, register: Register) -> Access {
    Access {
        place,
        size,
        write: false,
        register,
    }
}

fn write(place: i64, size: usize, register: Register) -> Access {
    Access {
        place,
        size,
        write: true,
        register,
    }
}

#[test]
fn local_exec_through_a_register() {
    // mov rax, fs:0; lea rax, [rax-0xb8]; mov rcx, [rax+0x30]; mov [rax+0x30], rbx
    let code = [
        0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x48, 0x8d, 0x80, 0x48, 0xff, 0xff, 0xff, 0x48,
        0x8b, 0x48, 0x30, 0x48, 0x89, 0x58, 0x30,
    ];
    assert_eq!(
        sweep(&executable(), &code),
        [read(0x30, 8, RCX), write(0x30, 8, RBX)]
    );
}

#[test]
fn local_exec_with_a_segment_override() {
    // mov r15, fs:[-0x78]; mov fs:[-0x78], r12
    let code = [
        0x64, 0x4c, 0x8b, 0x3c, 0x25, 0x88, 0xff, 0xff, 0xff, 0x64, 0x4c, 0x89, 0x24, 0x25, 0x88,
        0xff, 0xff, 0xff,
    ];
    assert_eq!(
        sweep(&executable(), &code),
        [read(0x40, 8, R15), write(0x40, 8, R12)]
    );
}

#[test]
fn relaxed_initial_exec_survives_an_early_return() {
    // mov r14, -0x98; jne +2; pop r14; ret (here the branch arrives);
    // mov fs:[r14+0x30], rbx
    let code = [
        0x49, 0xc7, 0xc6, 0x68, 0xff, 0xff, 0xff, 0x75, 0x03, 0x41, 0x5e, 0xc3, 0x64, 0x49, 0x89,
        0x5e, 0x30,
    ];
    assert_eq!(sweep(&executable(), &code), [write(0x50, 8, RBX)]);
}

#[test]
fn initial_exec_through_the_global_offset_table() {
    // mov rax, [rip+0xff9] (word at 0x2000); mov qword fs:[rax+8], 1
    let code = [
        0x48, 0x8b, 0x05, 0xf9, 0x0f, 0, 0, 0x64, 0x48, 0xc7, 0x40, 0x08, 1, 0, 0, 0,
    ];
    let addressing = Addressing {
        distances: HashMap::from([(0x2000, 0x20)]),
        size: 0x80,
        ..Addressing::default()
    };
    assert_eq!(sweep(&addressing, &code), [write(0x28, 8, Constant)]);
    assert_eq!(sweep(&executable(), &code), [], "the word is not known");
}

#[test]
fn general_dynamic_by_a_call() {
    // lea rdi, [rip+0xff9] (pair at 0x2000); call +0; mov [rax+0x30], rbx
    let code = [
        0x48, 0x8d, 0x3d, 0xf9, 0x0f, 0, 0, 0xe8, 0, 0, 0, 0, 0x48, 0x89, 0x58, 0x30,
    ];
    let addressing = Addressing {
        pairs: HashMap::from([(0x2000, 0x10)]),
        size: 0x80,
        ..Addressing::default()
    };
    assert_eq!(sweep(&addressing, &code), [write(0x40, 8, RBX)]);
}

#[test]
fn overwritten_registers_are_forgotten() {
    // mov rax, fs:0; mov eax, 5; mov [rax-0x30], rbx
    let code = [
        0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0xb8, 5, 0, 0, 0, 0x48, 0x89, 0x58, 0xd0,
    ];
    assert_eq!(sweep(&executable(), &code), []);
    // mov rax, fs:0; call +0; mov [rax-0x30], rbx
    let code = [
        0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0xe8, 0, 0, 0, 0, 0x48, 0x89, 0x58, 0xd0,
    ];
    assert_eq!(sweep(&executable(), &code), []);
}

proptest! {
    #[test]
    fn any_code_is_swept(code in prop::collection::vec(any::<u8>(), 0..200)) {
        let addressing = Addressing { pairs: HashMap::from([(0x2000, i64::MAX)]), ..executable() };
        sweep(&addressing, &code);
    }
}
