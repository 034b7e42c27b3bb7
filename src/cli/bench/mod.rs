//! `vlm bench`: whole jobs by the clock.

mod job;
mod one_dollar;
pub mod shapes;

use crate::base::Result;

/// Time a whole job on this machine
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: vlm bench one-dollar --shape tiny --photos 12 --test 6 --size 320x213 --out one-dollar"
)]
pub struct Bench {
    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, clap::Subcommand)]
enum Job {
    OneDollar(one_dollar::OneDollar),
}

impl Bench {
    pub fn run(&self) -> Result<()> {
        match &self.job {
            Job::OneDollar(job) => job.run(),
        }
    }
}
