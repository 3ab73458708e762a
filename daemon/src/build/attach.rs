//! Attaches statements to a built image: its provenance, and the list of its packages.

use hearth_oci::Descriptor;
use hearth_sbom::{SPDX_PREDICATE_TYPE, SpdxSubject, spdx_document};
use jiff::{Timestamp, Unit};

use super::packages::packages;
use super::port::BuildStatements;
use super::rooms::{RoomContexts, image_fault};
use crate::image::ImageStatements;
use crate::model::attestation::Predicate;
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::image::VerifiedImage;
use crate::task;

const TOOL: &str = concat!("hearthd-", env!("CARGO_PKG_VERSION"));

impl RoomContexts {
    pub(super) async fn attach_statements(
        &self,
        image: VerifiedImage,
        statements: &BuildStatements,
    ) -> Result<VerifiedImage, Fault> {
        let failed = |error| image_fault(FaultStage::Export, &error);
        let BuildStatements { names, provenance, sbom, in_index } = statements;
        if provenance.is_none() && !sbom {
            return Ok(image);
        }
        let mut images = Vec::new();
        for manifest in self.images.platform_images(&image.manifest).await.map_err(failed)? {
            let mut predicates: Vec<Predicate> = provenance.iter().cloned().collect();
            if *sbom {
                predicates.push(self.package_list(&manifest, names.first()).await?);
            }
            images.push(ImageStatements { manifest, predicates });
        }
        let image = if *in_index {
            self.images.list_statements(&image, names, &images).await.map_err(failed)?
        } else {
            image
        };
        let whole: Vec<Predicate> = match images.as_slice() {
            [only] => only.predicates.clone(),
            _ => provenance.iter().cloned().collect(),
        };
        self.images.attach(&image, names, &whole).await.map_err(failed)?;
        Ok(image)
    }

    async fn package_list(&self, manifest: &Descriptor, name: Option<&String>) -> Result<Predicate, Fault> {
        let opened = self.open(manifest.clone()).await;
        let opened = opened.map_err(|error| image_fault(FaultStage::Export, &error))?;
        let tree = self.contexts.open_image(opened).await.map_err(|error| error.fault())?;
        let list = task::blocking("list packages", move || packages(&tree)).await;
        let list = list.map_err(std::io::Error::other).flatten();
        let list = list.map_err(|error| {
            let message = format!("the packages of image {} cannot be listed: {error}", manifest.digest);
            Fault::new(FaultStage::Export, ErrorCode::InvalidLayer, message)
        })?;
        // SPDX has times in whole seconds.
        let created = Timestamp::now().round(Unit::Second).unwrap_or_default().to_string();
        let subject = SpdxSubject {
            name: name.map_or("image", String::as_str),
            digest_hex: &manifest.digest.hex(),
            created: &created,
            tool: TOOL,
        };
        Ok(Predicate { kind: SPDX_PREDICATE_TYPE, content: spdx_document(&list, &subject) })
    }
}
