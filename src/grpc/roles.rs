//! What the client of a connection may do, by the names in its certificate.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use consentd_tls::peer_names;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;

/// What a client may do.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Check, and read a pair's consent and the sidecar's status.
    Check,
    /// Watch changes, which name users.
    Watch,
    /// Record events, and read histories.
    Record,
    /// Erase users.
    Erase,
}

impl Role {
    /// The role's name in `[roles]`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Watch => "watch",
            Self::Record => "record",
            Self::Erase => "erase",
        }
    }
}

/// A set of roles.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct RoleSet(u8);

impl RoleSet {
    fn with(self, role: Role) -> Self {
        Self(self.0 | Self::bit(role))
    }

    fn has(self, role: Role) -> bool {
        self.0 & Self::bit(role) != 0
    }

    fn bit(role: Role) -> u8 {
        match role {
            Role::Check => 1,
            Role::Watch => 2,
            Role::Record => 4,
            Role::Erase => 8,
        }
    }
}

/// The roles of a listener's clients. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Roles(Arc<Grants>);

#[derive(Clone, Debug, Default)]
struct Grants {
    /// By the names in certificates: DNS names, and URIs such as SPIFFE ids.
    named: BTreeMap<String, RoleSet>,
    /// Those of every client.
    anonymous: RoleSet,
}

impl Roles {
    /// The roles of these names. DNS names are compared without regard to case.
    #[must_use]
    pub fn new(roles: &BTreeMap<String, Vec<Role>>) -> Self {
        let named = |(name, roles): (&String, &Vec<Role>)| {
            let is_uri = name.contains(':');
            let name = if is_uri { name.clone() } else { name.to_ascii_lowercase() };
            (name, roles.iter().copied().fold(RoleSet::default(), RoleSet::with))
        };
        let named = roles.iter().map(named).collect();
        Self(Arc::new(Grants { named, anonymous: RoleSet::default() }))
    }

    /// These roles, and besides some that every client has, with a certificate or without one.
    #[must_use]
    pub fn with_anonymous(self, roles: &[Role]) -> Self {
        let mut grants = Arc::unwrap_or_clone(self.0);
        grants.anonymous = roles.iter().copied().fold(grants.anonymous, RoleSet::with);
        Self(Arc::new(grants))
    }

    /// The roles of a client: those of all its names, and those of every client.
    fn of(&self, certificate: &CertificateDer<'_>) -> RoleSet {
        let names = peer_names(certificate);
        let roles = names.iter().filter_map(|name| self.0.named.get(name));
        RoleSet(roles.fold(self.0.anonymous.0, |all, roles| all | roles.0))
    }
}

/// The roles of one connection's client.
#[derive(Clone, Default)]
pub(super) struct Peer(Option<(Roles, Arc<OnceLock<RoleSet>>)>);

impl Peer {
    /// A client of a listener where roles count. Until its certificate is known it has those of every client.
    pub(super) fn with_roles(roles: Roles) -> Self {
        Self(Some((roles, Arc::default())))
    }

    /// Notes the client's certificate, which the handshake has verified.
    pub(super) fn identified(&self, certificate: &CertificateDer<'_>) {
        if let Some((roles, found)) = &self.0 {
            let _ = found.set(roles.of(certificate));
        }
    }

    /// Whether the client has a role; `None` where roles do not count.
    pub(super) fn has(&self, role: Role) -> Option<bool> {
        let (roles, found) = self.0.as_ref()?;
        Some(found.get().copied().unwrap_or(roles.0.anonymous).has(role))
    }

    /// Whether the client has shown a certificate on a listener where roles count.
    pub(super) fn is_identified(&self) -> bool {
        self.0.as_ref().is_some_and(|(_, found)| found.get().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_set_has_the_roles_that_it_was_made_of() {
        let set = RoleSet::default().with(Role::Check).with(Role::Erase);
        let has = [Role::Check, Role::Watch, Role::Record, Role::Erase].map(|role| set.has(role));
        assert_eq!(has, [true, false, false, true]);
    }

    #[test]
    fn peer_without_a_certificate_has_no_role() {
        let listed = BTreeMap::from([("crm.example".to_owned(), vec![Role::Record])]);
        assert_eq!(Peer::with_roles(Roles::new(&listed)).has(Role::Record), Some(false));
        assert_eq!(Peer::default().has(Role::Record), None);
    }

    #[test]
    fn peer_without_a_certificate_has_the_roles_of_every_client() {
        let listed = BTreeMap::from([("crm.example".to_owned(), vec![Role::Watch])]);
        let peer = Peer::with_roles(Roles::new(&listed).with_anonymous(&[Role::Check]));
        assert_eq!(
            [Role::Check, Role::Watch].map(|role| peer.has(role)),
            [Some(true), Some(false)]
        );
        assert!(!peer.is_identified());
    }
}
