//! What the supervised parts have in common.

use super::readiness::StartupReport;
use super::router_link::Notes;
use crate::launch::LaunchPlan;
use crate::logs::Log;
use crate::process::sockets::Sockets;

/// The plan of a launch, and where its parts meet and report.
#[derive(Clone)]
pub struct Common<'a> {
    pub plan: &'a LaunchPlan,
    pub sockets: &'a Sockets,
    pub log: &'a Log,
    pub report: &'a StartupReport,
    pub notes: Notes,
}
