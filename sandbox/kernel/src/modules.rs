//! Kernel modules, with what they depend on, in the order in which they must be inserted.
//!
//! A package that was only unpacked has no `modules.dep` (depmod writes it at installation), so the dependencies are
//! read from the modules themselves: section `.modinfo`, entry `depends=`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection};

use crate::{Error, image};

/// The modules of one kernel.
pub struct Modules {
    /// By name, with `-` written as `_`.
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

/// One module, ready for insmod.
pub struct Module {
    /// Its name, with `-` written as `_`.
    pub name: String,
    /// The ELF file.
    pub elf: Vec<u8>,
}

impl Modules {
    /// Those below `folder` (`/lib/modules/VERSION`).
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        collect(folder, &mut files)?;
        let list = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        let built_in = list.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(Self { files, built_in })
    }

    /// `wanted` and all that they depend on, dependencies first, each once. Modules that are built into the kernel
    /// are left out.
    ///
    /// # Errors
    /// [`Error::Format`] where the kernel has a module neither as a file nor built in.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<Module>, Error> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        wanted.iter().try_for_each(|name| self.visit(name, &mut seen, &mut order))?;
        Ok(order)
    }

    fn visit(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<Module>) -> Result<(), Error> {
        let name = name.replace('-', "_");
        if self.built_in.contains(&name) || !seen.insert(name.clone()) {
            return Ok(());
        }
        let file = self.files.get(&name);
        let file =
            file.ok_or_else(|| Error::format(format!("module {name}"), "this kernel does not have it"))?;
        let bytes = fs::read(file).map_err(Error::file("reading", file))?;
        let elf = image::unpacked_module(&file.to_string_lossy(), bytes)?;
        for dependency in depends(&name, &elf)? {
            self.visit(&dependency, seen, order)?;
        }
        order.push(Module { name, elf });
        Ok(())
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::file("listing", folder))? {
        let entry = entry.map_err(Error::file("listing", folder))?;
        let kind = entry.file_type().map_err(Error::file("reading", folder))?;
        let path = entry.path();
        if kind.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `kvm_amd` for `…/kvm-amd.ko.xz`; `None` for what is no module.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

fn depends(name: &str, elf: &[u8]) -> Result<Vec<String>, Error> {
    let bad = |reason: String| Error::format(format!("module {name}"), reason);
    let file = object::File::parse(elf).map_err(|error| bad(error.to_string()))?;
    let section = file.section_by_name(".modinfo").ok_or_else(|| bad("it has no .modinfo".into()))?;
    let data = section.data().map_err(|error| bad(error.to_string()))?;
    let entries = data.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let list = entries.filter_map(|entry| entry.strip_prefix("depends=").map(str::to_owned));
    Ok(list
        .flat_map(|names| names.split(',').map(str::to_owned).collect::<Vec<_>>())
        .filter(|n| !n.is_empty())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_are_read_from_paths() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(name("kernel/arch/x86/kvm/kvm-amd.ko").as_deref(), Some("kvm_amd"));
        assert_eq!(name("9p.ko.xz").as_deref(), Some("9p"));
        assert_eq!(name("modules.order"), None);
        assert_eq!(name("a.kobj"), None);
    }

    #[test]
    fn what_is_built_in_is_left_out_and_what_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
        let modules = Modules::open(folder.path()).unwrap();
        assert!(modules.closure(&["ext4"]).unwrap().is_empty());
        let Err(error) = modules.closure(&["no-such"]) else { panic!("a missing module was found") };
        assert!(error.to_string().contains("no_such"));
    }
}
