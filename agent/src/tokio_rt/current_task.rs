//! Which task allocates: how to read Tokio's current task id in a process.

use std::path::Path;

use agent_ebpf::abi::heap::TaskIdRecipe;
use serde::{Deserialize, Serialize};

use super::{
    confirmation::{Belief, Verdict},
    tls::{Block, Recipe, WhyNot},
};
use crate::{
    capture::address_space::AddressSpace,
    host::{mapping, memory::Memory},
};

/// How the tasks of a process's allocations are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskIds {
    /// For the kernel programs.
    pub recipe: TaskIdRecipe,
    /// Whether Tokio was found at all.
    pub tokio: bool,
    /// Why ids cannot be read.
    pub why_not: Option<String>,
    /// Whether what is read are task ids.
    pub belief: Belief,
}

impl TaskIds {
    /// Whether a trial can tell more than is known.
    pub fn are_open(&self) -> bool {
        self.tokio && matches!(self.belief, Belief::Open | Belief::Unsettled(_))
    }

    /// Enters what a trial has shown.
    pub fn settle(&mut self, verdict: Verdict) {
        self.belief = match verdict {
            Verdict::Confirmed(recipe) => {
                self.recipe = recipe;
                self.why_not = None;
                Belief::Confirmed
            }
            Verdict::Refuted(why) => {
                self.recipe = TaskIdRecipe::default();
                self.why_not.get_or_insert_with(|| why.clone());
                Belief::Refuted(why)
            }
            Verdict::Unsettled(why) => Belief::Unsettled(why),
        };
    }
}

/// Looks for Tokio in a process's files. The main executable's copy is taken
/// before a library's: one recipe serves the whole process.
pub fn find(pid: u32, exe: &Path, space: &AddressSpace) -> TaskIds {
    let mut ids = TaskIds::default();
    let mut modules: Vec<_> = space
        .code
        .iter()
        .filter_map(|code| {
            let file = code.file.as_ref().ok()?;
            let module = file.module.as_ref()?;
            Some((
                module.path == exe,
                module,
                file.task_ids.as_ref()?,
                code.bias,
            ))
        })
        .collect();
    modules.sort_by_key(|(is_main, ..)| !is_main);
    for (is_main, module, recipes, bias) in modules {
        let recipe = if is_main {
            &recipes.as_main
        } else {
            &recipes.as_library
        };
        let outcome = match recipe {
            Err(WhyNot::NoTokio) => continue,
            Err(why) => Err(why.to_string()),
            Ok(recipe) => for_kernel(pid, recipe, bias),
        };
        ids.tokio = true;
        match outcome {
            Ok(recipe) => {
                return TaskIds {
                    recipe,
                    tokio: true,
                    ..TaskIds::default()
                };
            }
            Err(why) => {
                ids.why_not
                    .get_or_insert_with(|| format!("{}: {why}", module.path.display()));
            }
        }
    }
    ids
}

/// The recipe with the module's id, which the dynamic linker has chosen.
fn for_kernel(pid: u32, recipe: &Recipe, bias: u64) -> Result<TaskIdRecipe, String> {
    let module_id = match recipe.block {
        Block::BelowThreadPointer(_) => None,
        Block::ModuleIdAt(address) => {
            let read = || Memory::open(pid)?.word(&mapping::of(pid)?, bias.wrapping_add(address));
            Some(read().map_err(|error| format!("its module id cannot be read: {error}"))?)
        }
    };
    recipe
        .for_kernel(module_id)
        .ok_or_else(|| "its module id makes no sense".to_owned())
}

/// Recipes of one file, for the two roles it can have; made once per file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FileRecipes {
    /// As a process's main executable.
    pub as_main: Result<Recipe, WhyNot>,
    /// As a shared library.
    pub as_library: Result<Recipe, WhyNot>,
}

impl FileRecipes {
    /// Whether it keeps to the bounds.
    pub fn is_sound(&self) -> bool {
        let sound = |recipe: &Result<Recipe, WhyNot>| match recipe {
            Ok(recipe) => recipe.is_sound(),
            Err(why) => why.is_sound(),
        };
        sound(&self.as_main) && sound(&self.as_library)
    }
}
