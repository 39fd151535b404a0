use super::scan::*;
use super::writes::*;
use super::*;

fn open(dir: &Path) -> Engine {
    Engine::open(dir, 1 << 20, DirLock::take(dir).unwrap()).unwrap().0
}

/// Does not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ length as u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..length).map(next).collect()
}

#[test]
fn long_values_come_back_whole_and_leave_no_chunk_behind() {
    let dir = tempfile::tempdir().unwrap();
    let long = noise(100_000);
    let engine = open(dir.path());
    let mut writes = Writes::default();
    writes.put(Space::State, b"a", long.clone());
    writes.put(Space::State, b"b", b"short".to_vec());
    writes.put(Space::Log, b"a", b"other".to_vec());
    engine.write(&writes).unwrap();
    drop(engine);

    let engine = open(dir.path());
    assert_eq!(engine.get(Space::State, b"a").unwrap(), Some(long.clone()));
    let all: Vec<_> = engine.scan(Space::State, b"").collect::<io::Result<_>>().unwrap();
    assert_eq!(all, [(b"a".to_vec(), long), (b"b".to_vec(), b"short".to_vec())]);
    assert_eq!(engine.get(Space::Log, b"a").unwrap(), Some(b"other".to_vec()));
    let mut writes = Writes::default();
    writes.put(Space::State, b"a", b"now short".to_vec());
    engine.write(&writes).unwrap();
    assert_eq!(engine.get(Space::State, b"a").unwrap(), Some(b"now short".to_vec()));
    assert_eq!(raw(&engine).scan_prefix([CHUNKS]).count(), 0);
}

#[test]
fn values_are_compressed_where_that_helps() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let similar: Vec<u8> = (0..2000).flat_map(|n| format!("{{\"number\": {}}}", n % 7).into_bytes()).collect();
    let values = [Vec::new(), similar[..127].to_vec(), similar[..1000].to_vec(), similar, noise(1000), noise(20_000)];
    let stored: Vec<_> = values
        .iter()
        .map(|value| {
            let mut writes = Writes::default();
            writes.put(Space::State, b"k", value.clone());
            engine.write(&writes).unwrap();
            assert_eq!(engine.get(Space::State, b"k").unwrap().as_ref(), Some(value));
            let db = raw(&engine);
            let chunks: usize = db.scan_prefix([CHUNKS]).values().map(|chunk| chunk.unwrap().len()).sum();
            chunks + db.get(Space::State.key(b"k")).unwrap().unwrap().len()
        })
        .collect();
    assert!(stored[2] < 200 && stored[3] < 2000, "{stored:?}");
    assert_eq!((stored[0], stored[1], stored[4]), (5, 132, 1005));
    assert!(stored[5] < 20_020, "{stored:?}");
}

fn raw(engine: &Engine) -> sled::Db {
    engine.read().as_ref().unwrap().db.clone()
}

#[test]
fn a_scan_sees_all_records_once_whatever_it_reads_at_a_time() {
    for count in [0, 1, SCAN_RECORDS, SCAN_RECORDS + 1, 3 * SCAN_RECORDS] {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        let mut writes = Writes::default();
        writes.put(Space::Log, b"before", Vec::new());
        for n in 0..count as u32 {
            writes.put(Space::State, &n.to_be_bytes(), n.to_le_bytes().to_vec());
        }
        engine.write(&writes).unwrap();
        let all: Vec<_> = engine.scan(Space::State, b"").collect::<io::Result<_>>().unwrap();
        let expected: Vec<_> =
            (0..count as u32).map(|n| (n.to_be_bytes().to_vec(), n.to_le_bytes().to_vec())).collect();
        assert_eq!(all, expected);
    }
}

#[test]
fn a_record_that_changed_by_itself_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut writes = Writes::default();
    writes.put(Space::State, b"/pods/a", b"value".to_vec());
    writes.put(Space::State, b"/pods/b", vec![1; 1000]);
    writes.put(Space::Log, &7u64.to_be_bytes(), noise(60_000));
    engine.write(&writes).unwrap();
    let db = raw(&engine);
    for (full_key, named) in [
        (Space::State.key(b"/pods/b"), "key /pods/b"),
        (Space::State.key(b"/pods/a"), "key /pods/a"),
        (chunk_key(&Space::Log.key(&7u64.to_be_bytes()), 1), "log entry 7"),
    ] {
        let mut record = db.get(&full_key).unwrap().unwrap().to_vec();
        *record.last_mut().unwrap() ^= 1;
        db.insert(&full_key, record).unwrap();
        let error = engine
            .scan(if named.starts_with("key") { Space::State } else { Space::Log }, b"")
            .last()
            .unwrap()
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains(named) && error.to_string().contains("sled/db"), "{error}");
        let slice = engine.read_slice(b"");
        assert!(slice.damaged.iter().any(|error| error.to_string().contains(named)), "{slice:?}");
    }
}

#[test]
fn no_page_becomes_a_blob_whatever_the_values() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let blobs = || fs::read_dir(dir.path().join("sled/blobs")).unwrap().count();
    for n in 0..600u32 {
        let mut writes = Writes::default();
        let key = format!("/registry/{:0>300}", n * 7919 % 400);
        match n % 5 {
            0 => writes.remove(Space::State, key.as_bytes()),
            _ => writes.put(Space::State, key.as_bytes(), noise([100, 5000, 5120, 60_000, 5121][n as usize % 5])),
        }
        engine.write(&writes).unwrap();
        assert_eq!(blobs(), 0, "at {n}");
    }
}

#[test]
fn a_database_opened_again_has_what_was_durable() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    for n in 0..50u8 {
        let mut writes = Writes::default();
        writes.put(Space::State, &[n % 7], noise(30_000 + usize::from(n)));
        engine.write(&writes).unwrap();
        if n % 10 == 9 {
            engine.reopen().unwrap();
            assert_eq!(engine.get(Space::State, &[n % 7]).unwrap(), Some(noise(30_000 + usize::from(n))));
        }
    }
}

#[test]
fn what_was_packed_before_is_as_what_was_not() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let mut packer = Packer::new().unwrap();
    let values = [Vec::new(), b"words ".repeat(100), noise(1000), noise(20_000), b"words ".repeat(1 << 20)];
    for value in values {
        let mut writes = Writes::default();
        writes.put(Space::State, b"plain", value.clone());
        writes.put_record(Space::State, b"packed", packer.pack(Space::State, b"packed", &value));
        engine.write(&writes).unwrap();
        assert_eq!(engine.get(Space::State, b"packed").unwrap().as_ref(), Some(&value));
        assert_eq!(engine.get(Space::State, b"plain").unwrap().as_ref(), Some(&value));
    }
    let mut writes = Writes::default();
    writes.put_record(Space::State, b"packed", packer.pack(Space::State, b"other", b"value"));
    engine.write(&writes).unwrap();
    assert!(engine.get(Space::State, b"packed").is_err(), "a record is for one key");
}
