//! `vlm compare`: two evaluations of the same photos, head to head.

use super::notice::notice;
use super::{output, table};
use crate::base::{Error, Result, counted};
use crate::classify::compare::{COMPARISON, Comparison, OnDifferent, compare};
use crate::classify::folder::write_records;
use crate::classify::records::{Evaluation, PREDICTIONS, Record, written};
use crate::io::json;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Hold two evaluations of the same photos against each other: what was fixed, what was broken, whether it is chance
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vlm compare scores/base scores/tuned --out scores/base-tuned\n\
                  Query: jq -r 'select(.tags | index(\"broken\")) | .image' scores/base-tuned/predictions.jsonl")]
pub struct Compare {
    /// The folder of the first evaluation, as `vlm eval --out` filled it
    #[arg(value_name = "A")]
    before: PathBuf,
    /// That of the second
    #[arg(value_name = "B")]
    after: PathBuf,
    /// Compare the photos that both have, and leave out the others
    #[arg(long)]
    common: bool,
    /// Folder for comparison.json and predictions.jsonl: the second's records, tagged both_right, fixed, broken or both_wrong
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace an earlier comparison in the folder
    #[arg(long, requires = "out")]
    overwrite: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

impl Compare {
    pub fn run(&self) -> Result<()> {
        let (a, b) = (Evaluation::read(&self.before)?, Evaluation::read(&self.after)?);
        let on_different = if self.common { OnDifferent::Intersect } else { OnDifferent::Fail };
        let c = compare(&a, &b, on_different)?;
        if c.alone != [0, 0] {
            let [only_a, only_b] = c.alone;
            let photos = counted(c.pairs.len(), "photo is", "photos are");
            notice(format_args!("{photos} in both; left out: {only_a} of only the first, {only_b} of only the second"));
        }
        let said = summary(&a, &b, &c);
        if let Some(out) = &self.out {
            self.write(out, &b, &c, &said)?;
        }
        if self.json {
            return super::print_json(&said);
        }
        let mut names = [a.name(), b.name()];
        if names[0] == names[1] {
            names = [self.before.display().to_string(), self.after.display().to_string()];
        }
        super::print(&table::comparison(&c, [&names[0], &names[1]]))
    }

    fn write(&self, out: &Path, b: &Evaluation, c: &Comparison, said: &Value) -> Result<()> {
        let (records_file, about) = (out.join(PREDICTIONS), out.join(COMPARISON));
        if !about.exists() && records_file.exists() {
            return Err(Error::file(out, "holds predictions that are no comparison; name another folder"));
        }
        if about.exists() && !self.overwrite {
            return Err(Error::file(out, "holds an earlier comparison; name another folder or give --overwrite"));
        }
        let read = [&self.before, &self.after].map(|folder| folder.join(PREDICTIONS));
        output::not_an_input(&records_file, read.iter().map(PathBuf::as_path))?;
        std::fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
        let folder = out.canonicalize().map_err(|e| Error::io("use as a folder", out, e))?;
        let from_here = |record: &Record| {
            let mut record = record.clone();
            let image = |i: &str| b.path(i).map_or(Ok(i.to_owned()), |path| written(&path, &folder));
            let images = record.images().into_iter().map(image).collect::<Result<_>>()?;
            record.set_images(images);
            Ok(record)
        };
        let records = c.pairs.iter().map(|p| from_here(&p.after)).collect::<Result<Vec<Record>>>()?;
        write_records(&records_file, &records)?;
        json::write(&about, said)
    }
}

/// The comparison as JSON: counts and photos of the groups, the test, both scores, the classes.
pub fn summary(a: &Evaluation, b: &Evaluation, c: &Comparison) -> Value {
    let photos = |group| -> Vec<Value> {
        let of = |r: &Record| match r.images().first() {
            Some(image) => b.path(image).map_or_else(|| image.to_string(), |p| p.display().to_string()).into(),
            None => Value::from(r.line),
        };
        c.pairs.iter().filter(|p| p.group == group).map(|p| of(&p.after)).collect()
    };
    let groups: serde_json::Map<String, Value> =
        c.counts.iter().map(|(group, n)| (group.tag().into(), json!({"n": n, "photos": photos(*group)}))).collect();
    let dir = |e: &Evaluation| e.dir.canonicalize().unwrap_or_else(|_| e.dir.clone()).display().to_string();
    json!({
        "before": {"dir": dir(a), "accuracy": c.before.accuracy, "interval": c.before.interval},
        "after": {"dir": dir(b), "accuracy": c.after.accuracy, "interval": c.after.interval},
        "n": c.pairs.len(),
        "left_out": c.alone,
        "groups": groups,
        "mcnemar_p": c.p,
        "per_class": c.per_class,
    })
}
