//! Frames of an allocation stack, and which of them are the user's.

mod owner;
mod runtime;

use serde::Serialize;

use super::Text;
use runtime::{is_allocator_frame, is_runtime_function, is_runtime_module, is_runtime_source};

/// One function of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Frame {
    /// Demangled name; null where the file has no symbol for it.
    pub function: Option<Text>,
    /// Path of the mapped file.
    pub module: Option<Text>,
    /// Its build id, hexadecimal.
    pub build_id: Option<String>,
    /// Code address within the file, hexadecimal with `0x`.
    pub offset: Option<String>,
    /// Source file.
    pub file: Option<Text>,
    /// Source line.
    pub line: Option<u32>,
    /// Whether the compiler put this function into the next one.
    pub inlined: bool,
}

impl Frame {
    /// How the frame is called in a list: its function, or module and offset.
    pub fn label(&self) -> String {
        match (&self.function, &self.module, &self.offset) {
            (Some(function), _, _) => function.as_str().to_owned(),
            (None, Some(module), Some(offset)) => format!("{}+{offset}", module.basename()),
            (None, Some(module), None) => module.basename().to_owned(),
            (None, None, Some(offset)) => offset.clone(),
            (None, None, None) => "?".to_owned(),
        }
    }

    /// `file:line`, where known.
    pub fn location(&self) -> Option<String> {
        let file = self.file.as_ref()?;
        Some(match self.line {
            Some(line) => format!("{file}:{line}"),
            None => file.to_string(),
        })
    }
}

/// The frames of a stack that belong to the program's own code, innermost
/// first: neither allocator nor language runtime nor async runtime. Where
/// there is none, the first frame outside the allocator, else the first.
pub fn user_frames(frames: &[Frame]) -> Vec<&Frame> {
    let users: Vec<&Frame> = frames.iter().filter(|frame| is_user_frame(frame)).collect();
    if !users.is_empty() {
        return users;
    }
    frames
        .iter()
        .find(|frame| !is_allocator_frame(frame))
        .or(frames.first())
        .into_iter()
        .collect()
}

/// The function to name a site by: the innermost of the user's that stands on
/// its own. An inlined one has no full name, and is there with debug
/// information only.
pub fn site_frame(frames: &[Frame]) -> Option<&Frame> {
    let users = user_frames(frames);
    users
        .iter()
        .find(|frame| !frame.inlined)
        .or(users.first())
        .copied()
}

/// The names that group stacks into one site: the labels of its
/// [`user_frames`], without inlined ones, which only debug information shows:
/// a site is the same with it and without. Two stacks with the same list are
/// the same site.
pub fn user_functions(frames: &[Frame]) -> Vec<String> {
    let standing: Vec<Frame> = frames
        .iter()
        .filter(|frame| !frame.inlined)
        .cloned()
        .collect();
    user_frames(&standing)
        .into_iter()
        .map(Frame::label)
        .collect()
}

/// Whether a frame is neither allocator nor runtime.
pub fn is_user_frame(frame: &Frame) -> bool {
    if is_allocator_frame(frame)
        || frame
            .module
            .as_ref()
            .is_some_and(|module| is_runtime_module(module.basename()))
    {
        return false;
    }
    if frame
        .file
        .as_ref()
        .is_some_and(|file| is_runtime_source(file.as_str()))
    {
        return false;
    }
    frame
        .function
        .as_ref()
        .is_none_or(|function| !is_runtime_function(function.as_str()))
}

#[cfg(test)]
mod tests;
